"""Networks of the open Wan family of video models and what they need around them."""
