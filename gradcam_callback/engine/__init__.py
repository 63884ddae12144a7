"""From a model and a batch to class activation maps. Knows no Trainer."""
