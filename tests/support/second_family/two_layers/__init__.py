"""A family of models as another package would bring it: two layers, a spec and a table. converter knows none of it."""
