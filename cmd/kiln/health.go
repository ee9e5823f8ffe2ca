package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
)

// healthTimeout bounds how long kiln health waits for an answer.
const healthTimeout = 5 * time.Second

func newHealthCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "health [URL]",
		Short: "Ask a server whether it is well, for supervisors",
		Long: "Ask a server whether it is well, as supervisors of processes do: the exit code is 0 if it is, else 1.\n" +
			"Without a URL it is the server that other commands would speak to. No token is needed.",
		Example: "  kiln health\n  kiln health http://127.0.0.1:7070/healthz",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), healthTimeout)
			defer cancel()
			client, url, err := c.healthClient(args)
			if err != nil {
				return err
			}
			answer, err := health(ctx, client, url)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.Out, answer)
			return nil
		},
	}
}

// healthClient returns the URL that arguments or the environment name, and how to reach it.
func (c *cli) healthClient(args []string) (*http.Client, string, error) {
	if len(args) == 0 {
		client, err := c.client()
		if err != nil {
			return nil, "", err
		}
		return client.HTTP, client.BaseURL + "/healthz", nil
	}
	if !strings.HasPrefix(args[0], "http://") && !strings.HasPrefix(args[0], "https://") {
		return nil, "", usagef("kiln health http://127.0.0.1:7070/healthz", "%q: want the URL of a server", args[0])
	}
	trust, err := c.trust(nil)
	if err != nil {
		return nil, "", err
	}
	return apiclient.NewHTTP(args[0], trust), args[0], nil
}

// health returns the first line that a server says of itself, or why it is not well.
func health(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return "", fmt.Errorf("%s: %w", url, err)
	}
	answer := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, resp.Status, answer)
	}
	return answer, nil
}
