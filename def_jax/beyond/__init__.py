"""What the paper does not have, a file each, plugged into Algorithm 1 through one seam."""
