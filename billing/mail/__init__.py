"""Mails: made, kept in the outbox, and handed to an SMTP server."""
