"""`python -m stacks` writes docs/stacks.md."""

if __name__ == "__main__":
    # Here and not above: each rank imports this module again, and the frameworks take seconds.
    from stacks.page import main

    main()
