"""`python -m rlhf_ext.cli`."""

from . import main

if __name__ == "__main__":
    main()
