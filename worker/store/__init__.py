"""PostgreSQL. A public function is one transaction and returns values, never rows."""
