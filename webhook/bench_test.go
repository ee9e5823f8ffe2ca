package webhook_test

import (
	"bytes"
	"context"
	"net/http/httptest"
	"os"
	"testing"

	"kiln/webhook"
)

// BenchmarkHandler measures the handler alone, without a network and a store.
func BenchmarkHandler(b *testing.B) {
	body, err := os.ReadFile("testdata/github-push-8k.json")
	if err != nil {
		b.Fatal(err)
	}
	h := &webhook.Handler{Publish: func(context.Context, string, []byte) error { return nil },
		Hooks: func(context.Context, string) (webhook.Hook, error) { return hookOf("github", testSecret, ""), nil }}
	signature := "sha256=" + hexMAC(testSecret, body)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", "/hooks/github/bench", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-GitHub-Event", "push")
		r.Header.Set("X-GitHub-Delivery", "1")
		r.Header.Set("X-Hub-Signature-256", signature)
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 202 {
			b.Fatal(w.Code, w.Body)
		}
	}
}
