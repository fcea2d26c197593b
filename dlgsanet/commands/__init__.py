"""The subcommands of `dlgsanet`, one file each: arguments only. Heavy modules are imported once they are parsed."""
