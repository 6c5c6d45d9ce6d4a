"""What every room uses: sentences for errors, flags, files, text, device, processes."""
