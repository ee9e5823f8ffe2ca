package secret_test

import (
	"encoding/base64"
	"fmt"
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

// TestRedactorMasksWrappedBase64 breaks base64 at every width, and writes it in chunks of many sizes.
func TestRedactorMasksWrappedBase64(t *testing.T) {
	value := "a secret of some length: correct horse battery staple!"
	r := func() *secret.Redactor { return secret.NewRedactor([]string{value}) }
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte("user"[:shift+1] + value + "more"))
		for width := 10; width < len(text)+2; width++ {
			for _, newline := range []string{"\n", "\r\n"} {
				var wrapped strings.Builder
				for i := 0; i < len(text); i += width {
					wrapped.WriteString(text[i:min(i+width, len(text))] + newline)
				}
				for _, chunk := range []int{1, 7, 1000} {
					red, out := r(), ""
					for s := wrapped.String(); s != ""; {
						n := min(chunk, len(s))
						out += string(red.Write([]byte(s[:n])))
						s = s[n:]
					}
					out += string(red.Flush())
					if flat := strings.NewReplacer("\n", "", "\r", "").Replace(out); len(flat) > 20 || !strings.Contains(flat, "***") {
						t.Fatalf("shift %d, lines of %d, chunks of %d: %q", shift, width, chunk, out)
					}
				}
			}
		}
	}
}

func TestRedactorMasksEscapedValues(t *testing.T) {
	value := "p&ss \"word\"\nsecond/line"
	r := secret.NewRedactor([]string{value})
	for _, text := range []string{`p&ss \"word\"\nsecond/line`, "p%26ss+%22word%22%0Asecond%2Fline", "p&ss%20%22word%22%0Asecond%2Fline", "second/line", value} {
		if got := r.String("x " + text + " y"); got != "x *** y" {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// TestRedactorHoldsNoLineBack ends lines as base64 of the value begins.
func TestRedactorHoldsNoLineBack(t *testing.T) {
	value := "correct horse battery staple"
	form := base64.StdEncoding.EncodeToString([]byte(value))
	r := secret.NewRedactor([]string{value})
	for n := range 4 {
		line := "listening " + form[:n] + "\n"
		if got := string(r.Write([]byte(line))); got != line {
			t.Errorf("%q is held back, written %q", line, got)
		}
	}
}

func TestRedactorMasksOverlappingValues(t *testing.T) {
	r := secret.NewRedactor([]string{"abcd", "cdefgh", "abcdefghij"})
	for text, want := range map[string]string{"abcdefgh": "***", "xabcdy": "x***y", "abcdefghij": "***", "cdefghcdefgh": "******"} {
		if got := r.String(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestRedactorMasksManyValues(t *testing.T) {
	var values []string
	for i := range 40 {
		values = append(values, strings.Repeat(string(rune('a'+i%26)), 5)+"-secret-"+strings.Repeat("x", i))
	}
	r := secret.NewRedactor(values)
	for _, v := range values {
		if got := r.String("say " + v + " and " + base64.StdEncoding.EncodeToString([]byte(v))); strings.Contains(got, v) || strings.Count(got, "***") < 2 {
			t.Errorf("%q: %q", v, got)
		}
	}
}

func BenchmarkRedactor(b *testing.B) {
	chunk := []byte(strings.Repeat("2026-11-22 a line of output as programs write it, not too short\n", 512))
	for _, n := range []int{1, 40} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var values []string
			for i := range n {
				values = append(values, strings.Repeat(string(rune('a'+i%26)), 5)+"-secret-value-"+strings.Repeat("x", i))
			}
			r := secret.NewRedactor(values)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				r.Write(chunk)
			}
		})
	}
}
