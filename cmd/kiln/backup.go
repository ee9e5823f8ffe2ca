package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/backup"
	"kiln/internal/secret"
)

// keyFiles are the files of a data directory that a backup takes with it.
var keyFiles = []string{auth.AdminTokenFile, "signing.key", "identity.key", natsTokenFile}

func newBackupCommand(c *cli) *cobra.Command {
	var what apiclient.Backup
	var recipient string
	cmd := &cobra.Command{
		Use:   "backup FILE [flags]",
		Short: "Write the state of the server into a file",
		Long: "Write tasks, sealed secrets, hooks, tokens, runs, decisions, timers and events of the server into FILE, and the\n" +
			"keys of its data directory, while it goes on. FILE then opens all secrets: it is made with mode 0600, and\n" +
			"encrypted with --recipient. Images are not in it: docs/operations.md tells how to back up the registry.",
		Example: "  kiln backup kiln.backup\n  kiln backup --recipient age1... --logs /mnt/kiln.backup.age",
		Args:    argument("file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if recipient != "" {
				if err := secret.CheckRecipient(recipient); err != nil {
					return usagef("a public key of age-keygen, such as age1...", "--recipient: %w", err)
				}
			}
			s, size, err := c.backup(cmd.Context(), args[0], recipient, what)
			if err == nil {
				fmt.Fprintf(c.Out, "%s: %s, %s\n", args[0], describeBackup(s), sizeText(size))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&what.Logs, "logs", false, "with the logs of runs")
	f.BoolVar(&what.NoKeys, "no-keys", false, "without the keys of the data directory; secrets can then be opened only with its identity.key")
	f.StringVar(&recipient, "recipient", "", "encrypt FILE to a `PUBLIC-KEY` of age (age1...)")
	return cmd
}

// backup writes a backup beside path, and has it take its place when it is whole.
func (c *cli) backup(ctx context.Context, path, recipient string, what apiclient.Backup) (s backup.Summary, size int64, err error) {
	client, err := c.client()
	if err != nil {
		return s, 0, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // of mode 0600
	if err != nil {
		return s, 0, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if s, err = receiveBackup(ctx, client, f, recipient, what); err == nil {
		err = f.Sync()
	}
	if fi, serr := f.Stat(); serr == nil {
		size = fi.Size()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return s, 0, err
	}
	return s, size, os.Rename(f.Name(), path)
}

// receiveBackup writes a backup to w and verifies it on the way.
func receiveBackup(ctx context.Context, client *apiclient.Client, w io.Writer, recipient string, what apiclient.Backup) (backup.Summary, error) {
	body, err := client.Backup(ctx, what)
	if err != nil {
		return backup.Summary{}, err
	}
	defer body.Close()
	if recipient == "" {
		return backup.Verify(io.TeeReader(body, w))
	}
	sealed, err := secret.EncryptTo(w, recipient)
	if err != nil {
		return backup.Summary{}, err
	}
	s, err := backup.Verify(io.TeeReader(body, sealed))
	if err != nil {
		return s, err
	}
	return s, sealed.Close()
}

// describeBackup says in a few words what is in a backup.
func describeBackup(s backup.Summary) string {
	messages := uint64(0)
	for _, st := range s.Streams {
		messages += st.Messages
	}
	with := ", no keys"
	if len(s.KeyFiles) > 0 {
		with = ", " + count(int64(len(s.KeyFiles)), "key")
	}
	if !s.Logs {
		with += ", no logs"
	}
	return fmt.Sprintf("%d messages in %s%s", messages, count(int64(len(s.Streams)), "stream"), with)
}

// oneBackup is held by the backup that is being made.
var oneBackup sync.Mutex

// writeBackup writes a backup of this server's state. One is made at a time.
func (n *node) writeBackup(ctx context.Context, w io.Writer, what apiclient.Backup) error {
	if !oneBackup.TryLock() {
		return &apiclient.Error{Status: http.StatusServiceUnavailable, Code: apiclient.CodeUnavailable,
			Message: "another backup is being made", Remedy: "try again when it is done"}
	}
	defer oneBackup.Unlock()
	opt := backup.Options{Version: version(), Dir: n.cfg.keys, Logs: what.Logs}
	if !what.NoKeys {
		opt.Keys = keyFiles
	}
	return backup.Write(ctx, n.bus, w, opt)
}
