"""What computes the operations of `dlgsanet.ops`, one file or folder per backend."""
