"""The components that come with the kernel, through the same door as a stranger's: entry points."""
