"""Networks of the open Wan weights: transformer, autoencoders, text, the rolling context."""
