"""The programs, one a stage; shipped as `rlhf_ext.programs`. Run them with `accelerate launch trainers/ppo.py`."""
