package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"kiln/internal/solve"
)

// errRegistryAway marks the error of an attempt that could not reach the co-located registry, which another attempt may.
var errRegistryAway = errors.New("the registry did not answer")

const (
	registryPatience = time.Minute            // for a registry that is started again
	registryAgain    = 500 * time.Millisecond // between two questions
)

// noAnswer is how those who speak HTTP say that nobody answers at an address.
var noAnswer = []string{"connection refused", "connection reset by peer", "broken pipe", "EOF", "no route to host", "network is unreachable", "i/o timeout",
	"TLS handshake timeout", http.StatusText(http.StatusBadGateway), http.StatusText(http.StatusServiceUnavailable), http.StatusText(http.StatusGatewayTimeout)}

// awaitRegistry returns the error of an attempt, marked if it is that the registry in another process did not
// answer. It waits a while until that does: the next attempt would not fare better before.
func (a *attempt) awaitRegistry(ctx context.Context, err error) error {
	if err == nil || !a.w.Apart || errors.Is(err, solve.ErrUnavailable) || ctx.Err() != nil || !a.unanswered(err.Error()) {
		return err
	}
	a.w.Log.Warn("the registry did not answer, waiting for it", "run", a.run.ID, "err", a.clean(err))
	wait, cancel := context.WithTimeout(ctx, registryPatience)
	defer cancel()
	again := time.NewTicker(registryAgain)
	defer again.Stop()
	for !a.w.registryAnswers(wait) {
		select {
		case <-wait.Done():
		case <-again.C:
			continue
		}
		break
	}
	return fmt.Errorf("%w: %w", errRegistryAway, err)
}

// unanswered reports whether the message of an error says that the co-located registry did not answer. What comes
// from a build daemon is text by now.
func (a *attempt) unanswered(message string) bool {
	if !strings.Contains(message, a.w.Registry) && (a.w.RegistryAt == "" || !strings.Contains(message, a.w.RegistryAt)) {
		return false
	}
	for _, s := range noAnswer {
		if strings.Contains(message, s) {
			return true
		}
	}
	return false
}

// registryAnswers reports whether there is an answer of the co-located registry, whatever it is.
func (w *Worker) registryAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.Registry+"/v2/", nil)
	if err != nil {
		return false
	}
	res, err := (&http.Client{Transport: w.Own}).Do(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode < http.StatusInternalServerError
}
