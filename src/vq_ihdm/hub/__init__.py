"""What a model needs to be passed on: record, card, pictures, publishing."""
