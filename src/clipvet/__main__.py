"""`python -m clipvet`, and `torchrun --nproc-per-node 8 -m -- clipvet`, are the command `clipvet`."""

from clipvet.cli import main

if __name__ == "__main__":
    main()
