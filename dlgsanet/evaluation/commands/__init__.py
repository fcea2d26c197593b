"""The command lines of evaluation: arguments only; heavy modules are imported once they are parsed."""
