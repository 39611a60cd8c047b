"""imageio's plugin for .lic files; ``import pillow_lic`` registers it."""
