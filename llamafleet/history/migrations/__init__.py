"""Changes of the history's form, by Alembic."""
