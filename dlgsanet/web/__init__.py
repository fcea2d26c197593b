"""The page of `dlgsanet web`, where pictures are upscaled in a browser."""
