package secret_test

import (
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/secret"
)

func TestSealedValueOpensOnlyForItsRecipient(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	id, err := secret.LoadIdentity(file)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := secret.Seal(id.Recipient(), map[string]string{"k": "hunter22"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sealed), "hunter22") {
		t.Error("the sealed form shows the value")
	}
	again, err := secret.LoadIdentity(file)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := again.Open(sealed, &got); err != nil || got["k"] != "hunter22" {
		t.Errorf("Open = %v, %v", got, err)
	}
	other, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Open(sealed, &got); err == nil {
		t.Error("another identity opens it")
	}
}

// TestRedactorMasksWhateverTheChunks writes a text in every possible pair and triple of chunks.
func TestRedactorMasksWhateverTheChunks(t *testing.T) {
	value := "s3cr3t-s3cr3t!"
	for _, text := range []string{
		"before " + value + " after", value, value + value, "s3cr3t-s3cr3t-s3cr3t!",
		"b64 " + base64.StdEncoding.EncodeToString([]byte(value)) + " end",
		"b64 " + base64.StdEncoding.EncodeToString([]byte("x:"+value)) + " end",
		"b64 " + base64.StdEncoding.EncodeToString([]byte("user:"+value+"more")) + " end",
	} {
		core := base64.StdEncoding.EncodeToString([]byte(value))[4:12]
		for i := range len(text) {
			for j := i; j < len(text); j++ {
				r := secret.NewRedactor([]string{value})
				out := string(r.Write([]byte(text[:i]))) + string(r.Write([]byte(text[i:j]))) + string(r.Write([]byte(text[j:]))) + string(r.Flush())
				if strings.Contains(out, value) || strings.Contains(out, core) || !strings.Contains(out, "***") {
					t.Fatalf("%q in chunks at %d and %d: %q", text, i, j, out)
				}
			}
		}
	}
}

func TestRedactorLeavesOtherTextAlone(t *testing.T) {
	r := secret.NewRedactor([]string{"hunter22", "x"})
	text := "hunter2 hunts, x marks it"
	if got := string(r.Write([]byte(text))) + string(r.Flush()); got != text {
		t.Errorf("got %q, want %q", got, text)
	}
}
