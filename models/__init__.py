"""Networks: backbones, heads, their variants, and weights from and to files."""
