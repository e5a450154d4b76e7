"""File layouts, lists and packed files of each dataset, one module per dataset."""
