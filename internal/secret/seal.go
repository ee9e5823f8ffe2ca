// Package secret handles secret values: sealing them for storage and transport, and keeping them out
// of logs.
//
// A value is clear only in the process that received it and in the worker that uses it. What is
// stored or sent in between is sealed (age, X25519) to a recipient's public key.
package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
)

// maxSealed bounds what Open decrypts, in bytes.
const maxSealed = 4 << 20

// An Identity is a private key: it opens what was sealed to its recipient.
type Identity struct{ key *age.X25519Identity }

// NewIdentity generates an identity.
func NewIdentity() (Identity, error) {
	k, err := age.GenerateX25519Identity()
	return Identity{k}, err
}

// LoadIdentity reads the identity in file, or generates one and writes it there with mode 0600.
func LoadIdentity(file string) (Identity, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		id, err := NewIdentity()
		if err != nil {
			return Identity{}, err
		}
		return id, os.WriteFile(file, []byte(id.key.String()+"\n"), 0o600)
	}
	if err != nil {
		return Identity{}, err
	}
	k, err := age.ParseX25519Identity(string(bytes.TrimSpace(b)))
	if err != nil {
		return Identity{}, fmt.Errorf("%s: %w", file, err)
	}
	return Identity{k}, nil
}

// Recipient returns the public key to seal to.
func (i Identity) Recipient() string { return i.key.Recipient().String() }

// Seal encrypts v, encoded as JSON, to recipient.
func Seal(recipient string, v any) ([]byte, error) {
	r, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return nil, fmt.Errorf("recipient: %w", err)
	}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, r)
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Open decrypts what Seal made into v.
func (i Identity) Open(sealed []byte, v any) error {
	r, err := age.Decrypt(bytes.NewReader(sealed), i.key)
	if err != nil {
		return fmt.Errorf("sealed value: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxSealed))
	if err != nil {
		return fmt.Errorf("sealed value: %w", err)
	}
	return json.Unmarshal(b, v)
}
