"""The admin API: `http` serves, `rules` says who may, `api` answers, `doors` are the addresses it is served on."""
