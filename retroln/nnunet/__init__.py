"""The only nnU-Net imports: environment, dataset, splits, plans, trainer, predict, bundle."""
