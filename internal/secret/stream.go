package secret

import (
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
)

// CheckRecipient reports what is wrong with a public key, which begins with age1.
func CheckRecipient(recipient string) error {
	_, err := age.ParseX25519Recipient(recipient)
	return err
}

// EncryptTo returns what encrypts to w for a recipient, as the program age does; it is whole when it is closed.
func EncryptTo(w io.Writer, recipient string) (io.WriteCloser, error) {
	r, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		return nil, fmt.Errorf("recipient: %w", err)
	}
	return age.Encrypt(w, r)
}

// EncryptedPrefix begins what EncryptTo and the program age write.
const EncryptedPrefix = "age-encryption.org/v1\n"

// DecryptWith decrypts r with the identities in a file, one a line, as age-keygen writes it.
func DecryptWith(r io.Reader, file string) (io.Reader, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	ids, err := age.ParseIdentities(io.LimitReader(f, maxSealed))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return age.Decrypt(r, ids...)
}
