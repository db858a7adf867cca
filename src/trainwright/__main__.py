"""``python -m trainwright``, which is also what torchrun starts."""
from trainwright.cli import main

if __name__ == "__main__":
    main()
