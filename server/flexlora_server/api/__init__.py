"""The protocol's calls, one file per thing. A route checks who asks, opens one transaction, and says what came of it."""
