package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"kiln/internal/apiclient"
)

// ask has a run of a task asked for.
func (c *chaos) ask(task, key string) {
	c.events++
	c.asked[key] = task
	c.deliver(func(ctx context.Context, c *chaos) bool {
		client := &apiclient.Client{BaseURL: c.url, Token: c.token}
		r, err := client.RunTask(ctx, task, apiclient.TaskRun{Key: key})
		c.mu.Lock()
		defer c.mu.Unlock()
		var refused *apiclient.Error
		switch {
		case err == nil && c.answers[key] == nil:
			c.answers[key] = map[string]bool{r.ID: true}
		case err == nil:
			c.answers[key][r.ID] = true
		case errors.As(err, &refused) && refused.Status < 500:
			c.faults = append(c.faults, fmt.Sprintf("request %s: %v", key, err))
			return true
		}
		return err == nil
	})
}

// hookDelivery is a delivery to a forge's hook.
func hookDelivery(f *forge, id string, payload map[string]string) delivery {
	body, err := json.Marshal(payload)
	if err != nil {
		f.s.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(f.secret))
	mac.Write(body)
	signature := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	return func(ctx context.Context, c *chaos) bool {
		status, answer, err := c.post(ctx, f.hook, id, signature, body)
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case err != nil || status == http.StatusServiceUnavailable:
			return false
		case status != http.StatusAccepted || len(answer.Events) == 0 && !answer.Accepted:
			c.faults = append(c.faults, fmt.Sprintf("delivery %s: answered %d %+v", id, status, answer))
		}
		c.acknowledged = append(c.acknowledged, answer.Events...)
		if answer.Accepted {
			c.accepted = append(c.accepted, id)
		}
		return true
	}
}

type hookAnswer struct {
	Events         []string
	Accepted       bool
	Ignored, Error string
}

func (c *chaos) post(ctx context.Context, url, id, signature string, body []byte) (int, hookAnswer, error) {
	var answer hookAnswer
	ctx, cancel := context.WithTimeout(ctx, sendersGive)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, answer, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Kiln-Delivery", id)
	req.Header.Set("X-Hub-Signature-256", signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, answer, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	return resp.StatusCode, answer, err
}

// deliver has something delivered one to five times, some time.
func (c *chaos) deliver(d delivery) {
	if c.silent {
		return
	}
	c.window = append(c.window, slices.Repeat([]delivery{d}, 1+c.rnd.IntN(5))...)
	for len(c.window) > windowSize && !c.down {
		c.deliverOne()
	}
}

// deliverOne gives the senders one delivery of the window.
func (c *chaos) deliverOne() {
	i := c.rnd.IntN(len(c.window))
	c.out <- c.window[i]
	c.window = slices.Delete(c.window, i, i+1)
}

// send makes deliveries, each until it is taken.
func (c *chaos) send(ctx context.Context) {
	for d := range c.out {
		n := 1
		for !d(ctx, c) {
			n++
			select {
			case <-time.After(senderPause):
			case <-ctx.Done():
				c.mu.Lock()
				c.faults = append(c.faults, "a delivery was never taken")
				c.mu.Unlock()
				return
			}
		}
		c.mu.Lock()
		c.deliveries, c.repeats = c.deliveries+1, c.repeats+n-1
		c.mu.Unlock()
	}
}
