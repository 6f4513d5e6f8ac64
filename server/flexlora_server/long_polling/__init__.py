"""Long polling: parks idle requests without a thread or a database connection each, and polls the database for all of them."""
