"""The JSON messages of the protocol, one file per thing they speak of. All are strict: no extra field, no coercion, no NaN."""
