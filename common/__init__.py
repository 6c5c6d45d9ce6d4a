"""What every part uses: sentences for errors, flags, files, text, device, processes."""
