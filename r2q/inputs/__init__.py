"""What a run reads of the hub: downloaded and pinned where there is a network, found again where there is none."""
