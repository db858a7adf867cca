"""Papers as files: what each is, where it stands in the field, which claims it makes and how each is tested
here. ``library`` reads them; nothing here imports torch."""
