package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/klauspost/compress/s2"

	"kiln/internal/event"
)

// Replay decodes a stored delivery again and returns the events that it would make now, in the order
// and with the IDs that they had. The delivery is that of the first of its events; hook is the one
// that it came by, of which only Provider and Registry count.
func Replay(hook Hook, via event.Delivery) ([]event.Event, error) {
	p, ok := providers[via.Provider]
	if !ok {
		return nil, fmt.Errorf("replay: no provider %q", via.Provider)
	}
	body, err := storedBody(via)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	header := make(http.Header, len(via.Header))
	for k, v := range via.Header {
		header.Set(k, v)
	}
	f, err := p.decode(delivery{header: header, body: body, hook: hook})
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	events := make([]event.Event, len(f.facts))
	for i, one := range f.facts {
		if via.Index = i; i > 0 {
			via.Body, via.Encoding = nil, ""
		}
		_, _, encoded, err := encode(one, via)
		if err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		if err := json.Unmarshal(encoded, &events[i]); err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
	}
	return events, nil
}

// storedBody returns a delivery's body, decompressed.
func storedBody(via event.Delivery) ([]byte, error) {
	switch {
	case via.Omitted != "":
		return nil, errors.New(via.Omitted)
	case via.Index > 0:
		return nil, errors.New("the body is in the delivery's first event")
	case via.Encoding == "":
		return via.Body, nil
	}
	if n, err := s2.DecodedLen(via.Body); via.Encoding != packedEncoding || err != nil || n > maxBody {
		return nil, fmt.Errorf("the stored body is not in the format %s", packedEncoding)
	}
	return s2.Decode(nil, via.Body)
}
