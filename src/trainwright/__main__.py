"""``python -m trainwright``, which is also what torchrun starts."""
import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path and os.path.abspath(sys.path[0]) == os.getcwd():
        # Python puts the current folder first: nothing is imported from there
        del sys.path[0]
    from trainwright.cli import main
    main()
