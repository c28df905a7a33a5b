-- What the role of product people may do: read what a price can be learnt from, write price and plan books and
-- rehearsals. No account, no job and no credit.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM fermata_product;

GRANT USAGE ON SCHEMA public TO fermata_product;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO fermata_product;

REVOKE SELECT ON api_keys, sessions, webhook_secrets FROM fermata_product;

GRANT INSERT ON price_books, plan_books, rehearsals TO fermata_product;

-- Written by the triggers that keep who changed which book.
GRANT INSERT ON audit_log TO fermata_product;

GRANT UPDATE (withdrawn_at, withdrawn_by, withdrawn_note) ON price_books, plan_books TO fermata_product;
