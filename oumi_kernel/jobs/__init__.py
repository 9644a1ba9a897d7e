"""Job files for clusters: text that Slurm, SkyPilot or Kubernetes takes as it is."""
