package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kiln/cmd/kiln/internal/config"
)

// Names of the flag that is no setting itself, and of one that a server shares with clients.
const (
	configFlag = "config"
	dataFlag   = "data"
)

// addConfigFlag defines the flag that names the file of settings.
func addConfigFlag(f *pflag.FlagSet) {
	f.String(configFlag, "", "`FILE` with settings in YAML, by the names of these flags (default $KILN_CONFIG); a flag and the environment variable KILN_<FLAG> win over it")
}

// configure completes the settings of a command from the environment and the file that --config names: its own
// flags but those named, and the data directory. Its error is of everything that is wrong with them.
func (c *cli) configure(cmd *cobra.Command, but ...string) (config.Settings, error) {
	but = append(but, configFlag, "help")
	flags := pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(but, f.Name) {
			flags.AddFlag(f)
		}
	})
	flags.AddFlag(cmd.Flag(dataFlag))
	file := cmd.Flag(configFlag).Value.String()
	if file == "" {
		file = c.env(config.Variable(configFlag))
	}
	settings, err := config.Load(flags, config.Source{File: file, Lookup: c.Lookup, Nearest: nearest})
	if file != "" {
		if fi, serr := os.Stat(file); serr == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o002 != 0 {
			fmt.Fprintf(c.Err, "kiln: warning: everybody may write to %s, and so decide what the server does: chmod o-w\n", file)
		}
	}
	return settings, err
}

// settle completes the configuration of a command, and reports everything that is wrong with it at once.
func (c *cli) settle(cmd *cobra.Command, cfg *serveConfig, validate func() error, but ...string) (config.Settings, error) {
	settings, err := c.configure(cmd, but...)
	data, derr := c.dataDir()
	if derr == nil {
		cfg.data, derr = filepath.Abs(data)
	}
	cfg.keys = cmp.Or(cfg.keys, cfg.data)
	err = errors.Join(err, derr, cfg.absolute(), settings.Place(validate()))
	if err != nil {
		return nil, &usageError{err: err}
	}
	return settings, nil
}

// A configured is a command that settings are of, and its part in those.
type configured struct {
	command  string // kiln serve
	of       string // what it runs
	example  string // of a check
	add      func(*serveConfig, *pflag.FlagSet)
	validate func(*serveConfig) error
}

func newConfigCommand(c *cli) *cobra.Command {
	return newConfigOf(c, configured{"kiln serve", "server", "kiln config check /etc/kiln/kiln.yaml", (*serveConfig).add, (*serveConfig).validate})
}

func newWorkerConfigCommand(c *cli) *cobra.Command {
	return newConfigOf(c, configured{"kiln worker", "worker", "kiln worker config check /etc/kiln/worker.yaml", (*serveConfig).addApart, (*serveConfig).validateApart})
}

func newConfigOf(c *cli, k configured) *cobra.Command {
	cmd := group("config", "Look at the configuration of a "+k.of, "Look at the configuration that \""+k.command+"\" would have.")
	cmd.AddCommand(newConfigShowCommand(c, k), newConfigCheckCommand(c, k))
	return cmd
}

func newConfigShowCommand(c *cli, k configured) *cobra.Command {
	var cfg serveConfig
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{
		Use:   "show [flags of " + k.command + "]",
		Short: "Show every setting of a " + k.of + " and where its value is from",
		Long: "Show every setting that \"" + k.command + "\" would have with these flags, in this environment and with this file, and\n" +
			"where its value is from: a flag, an environment variable, a place in the file, or the default.",
		Args: noArguments,
	}
	k.add(&cfg, cmd.Flags())
	cmd.Flags().VarP(&output, "output", "o", "format")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		settings, err := c.settle(cmd, &cfg, func() error { return k.validate(&cfg) }, "output")
		if err != nil {
			return err
		}
		rows := configRows(cmd, settings, cfg.data)
		if output.json() {
			return c.printJSON(rows)
		}
		w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, r.text, r.place)
		}
		return w.Flush()
	}
	return cmd
}

func newConfigCheckCommand(c *cli, k configured) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:     "check [flags of " + k.command + "] FILE",
		Short:   "Check a file of settings",
		Long:    "Check a file of settings as \"" + k.command + " --config FILE\" would in this environment, and report everything that is wrong with it.",
		Example: "  " + k.example,
		Args:    argument("FILE"),
	}
	k.add(&cfg, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := cmd.Flags().Set(configFlag, args[0]); err != nil {
			return err
		}
		if _, err := c.settle(cmd, &cfg, func() error { return k.validate(&cfg) }); err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "%s is valid\n", args[0])
		return nil
	}
	return cmd
}

// A configRow is a setting as it is shown.
type configRow struct {
	Name     string      `json:"name"`
	Value    any         `json:"value"`
	Source   config.Kind `json:"source"`
	Variable string      `json:"variable"`         // that sets it
	File     string      `json:"file,omitempty"`   // that has set it
	Line     int         `json:"line,omitempty"`   // there
	Column   int         `json:"column,omitempty"` // there
	text     string
	place    string
}

func configRows(cmd *cobra.Command, settings config.Settings, data string) []configRow {
	row := func(s config.Setting) configRow {
		r := configRow{Name: s.Flag.Name, Value: s.Value(), Source: s.Origin.Kind, Variable: config.Variable(s.Flag.Name),
			text: s.Text(), place: s.Origin.String()}
		if s.Origin.Kind == config.File {
			r.File, r.Line, r.Column = s.Origin.Name, s.Origin.Line, s.Origin.Column
		}
		return r
	}
	first := row(settings[dataFlag])
	first.Value, first.text = data, data
	rows := []configRow{first}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if s, ok := settings[f.Name]; ok && f.Name != dataFlag {
			rows = append(rows, row(s))
		}
	})
	return rows
}
