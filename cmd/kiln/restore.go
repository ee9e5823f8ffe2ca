package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kiln/internal/backup"
	"kiln/internal/bus"
	"kiln/internal/secret"
)

// A restoration makes a server's state of a backup.
type restoration struct {
	file, identity string // the backup, and who can decrypt it
	data           string
	nats           natsConfig
	log            *slog.Logger
}

func newRestoreCommand(c *cli) *cobra.Command {
	r := restoration{log: slog.New(slog.NewTextHandler(c.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	cmd := &cobra.Command{
		Use:   "restore FILE [flags]",
		Short: "Make a data directory of a backup",
		Long: "Make of FILE, which kiln backup has written, the state of a server in an empty data directory, while no server\n" +
			"runs there; with --nats in NATS servers that have none of kiln's streams. The registry is put there by itself,\n" +
			"before or after. FILE is verified first. Runs that were under way are attempted again.",
		Example: "  kiln restore kiln.backup --data /var/lib/kiln\n  kiln restore --identity key.txt kiln.backup.age",
		Args:    argument("file"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r.file = args[0]
			if r.data, err = c.dataDir(); err != nil {
				return err
			}
			if err := r.nats.validate(); err != nil {
				return usagef("kiln restore --help", "%w", err)
			}
			s, err := r.do(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.Out, "%s: %s, of %s\n", r.data, describeBackup(s), clock(s.Created))
			if len(s.KeyFiles) == 0 {
				fmt.Fprintf(c.Err, "the backup has no keys: before you start the server, put %s of the old data directory there\n", strings.Join(keyFiles[:3], ", "))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&r.identity, "identity", "", "`FILE` with the private key of age that decrypts the backup")
	r.nats.addRemote(f)
	return cmd
}

// do restores, and returns what was in the backup.
func (r *restoration) do(ctx context.Context) (backup.Summary, error) {
	var s backup.Summary
	err := r.read(func(from io.Reader) (err error) { s, err = backup.Verify(from); return err })
	if err != nil {
		return s, err
	}
	n := &node{cfg: serveConfig{workerConfig: workerConfig{data: r.data}}}
	err = n.claim(ctx)
	if err == nil {
		err = r.checkEmpty()
	}
	if err == nil {
		err = r.read(func(from io.Reader) error { return backup.RestoreKeys(from, r.data, keyFiles) })
	}
	if err == nil {
		err = r.state(ctx)
	}
	return s, errors.Join(err, n.close())
}

// read opens the backup and has do read it.
func (r *restoration) read(do func(io.Reader) error) error {
	f, err := os.Open(r.file)
	if err != nil {
		return err
	}
	defer f.Close()
	from := bufio.NewReaderSize(f, 256<<10)
	begin, _ := from.Peek(len(secret.EncryptedPrefix)) // what is shorter is no backup, as is said below
	encrypted := string(begin) == secret.EncryptedPrefix
	switch {
	case encrypted && r.identity == "":
		return usagef("--identity FILE with the private key", "%s is encrypted", r.file)
	case !encrypted && r.identity != "":
		return usagef("leave --identity out", "%s is not encrypted", r.file)
	case !encrypted:
		err = do(from)
	default:
		var clear io.Reader
		if clear, err = secret.DecryptWith(from, r.identity); err == nil {
			err = do(clear)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.file, err)
	}
	return nil
}

// restoring is where the message store is made before it takes its place.
const restoring = "jetstream.restoring"

// checkEmpty refuses a data directory that has state. What may be there is a registry, what a restoration has left
// that was interrupted, and keys, which may not be others than those of the backup.
func (r *restoration) checkEmpty() error {
	list, err := os.ReadDir(r.data)
	if err != nil {
		return err
	}
	for _, e := range list {
		if name := e.Name(); name != "lock" && name != "registry" && name != restoring && !slices.Contains(keyFiles, strings.TrimSuffix(name, ".tmp")) {
			return usagef("name an empty directory with --data, or move away what is there; registry/ may stay", "%s is not empty: it has %s", r.data, name)
		}
	}
	return nil
}

// state restores the streams.
func (r *restoration) state(ctx context.Context) error {
	if r.nats.others() {
		nc, err := bus.Connect(ctx, r.nats.remote, "kiln restore", r.log)
		if err != nil {
			return err
		}
		defer nc.Close()
		err = r.streams(ctx, bus.Restorer{Conn: nc, Replicas: bus.ReplicasOn(nc, r.nats.replicas).Count})
		if errors.Is(err, bus.ErrReplicas) {
			err = usagef("start the other servers of the NATS cluster, or --nats-replicas 1 for state that is lost with one of them", "%w", err)
		}
		return err
	}
	dir := filepath.Join(r.data, restoring)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := r.ownStore(ctx, dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := os.Rename(dir, filepath.Join(r.data, "jetstream")); err != nil {
		return err
	}
	d, err := os.Open(r.data)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ownStore makes a message store in dir.
func (r *restoration) ownStore(ctx context.Context, dir string) error {
	ns, err := bus.StartServer(bus.ServerConfig{Dir: dir, Log: r.log})
	if err != nil {
		return err
	}
	defer ns.Shutdown()
	nc, err := ns.Connect("kiln restore")
	if err != nil {
		return err
	}
	defer nc.Close()
	return r.streams(ctx, bus.Restorer{Conn: nc})
}

func (r *restoration) streams(ctx context.Context, to bus.Restorer) error {
	found, err := to.Existing(ctx, backup.Streams())
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return usagef("name NATS servers, or an account of them, without kiln's streams", "there is state already: stream %s", strings.Join(found, ", "))
	}
	return r.read(func(from io.Reader) error { return backup.Restore(ctx, to, from) })
}
