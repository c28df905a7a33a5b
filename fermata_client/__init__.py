"""How others ask Fermata for music jobs: `fermata_client.client` has the clients, `requests` what may be asked."""
