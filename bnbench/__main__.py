"""`python -m bnbench` (and `accelerate launch -m bnbench`) is the command `bnbench`."""

from bnbench.cli import main

if __name__ == "__main__":
    main()
