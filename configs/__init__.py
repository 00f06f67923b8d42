"""Recipes and launch configurations, shipped as `rlhf_ext.configs`."""
