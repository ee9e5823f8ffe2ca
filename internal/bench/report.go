package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
)

// A result is one number with what it was made from.
type result struct {
	Program string  `json:"program"`
	What    string  `json:"what"`
	Unit    string  `json:"unit"` // x for a ratio, ms, s, MB
	Value   float64 `json:"value"`
	Must    float64 `json:"must,omitempty"` // the value must not be above; 0 for none
	Aim     float64 `json:"aim,omitempty"`
	// Fsyncs is how many fsyncs of the data disk Must grows by.
	Fsyncs int    `json:"fsyncs,omitempty"`
	Note   string `json:"note,omitempty"`

	Kiln     *summary `json:"kiln,omitempty"`
	Peer     *summary `json:"peer,omitempty"`
	PeerName string   `json:"peerName,omitempty"`

	Before conditions `json:"before"`
	After  conditions `json:"after"`
}

func (r result) verdict() string {
	switch {
	case r.Must == 0 && r.Aim == 0:
		return "-"
	case r.Must > 0 && r.Value > r.Must:
		return "MISS"
	case r.Aim > 0 && r.Value > r.Aim:
		return "pass, aim missed"
	case r.Aim > 0:
		return "pass, aim met"
	}
	return "pass"
}

func (r result) String() string {
	return fmt.Sprintf("%s: %s: %s (must %s, aim %s): %s; kiln %s, %s %s; load %.1f to %.1f, fsync %.2f to %.2f ms%s",
		r.Program, r.What, amount(r.Value, r.Unit), amount(r.Must, r.Unit), amount(r.Aim, r.Unit), r.verdict(),
		r.Kiln, orDash(r.PeerName), r.Peer, r.Before.Load, r.After.Load, r.Before.Fsync, r.After.Fsync, note(r.Note))
}

func (s *summary) String() string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f (p90 %.1f) ms", s.P50, s.P90)
}

func note(s string) string {
	if s == "" {
		return ""
	}
	return "; " + s
}

func orDash(s string) string {
	if s == "" {
		return "peer"
	}
	return s
}

// amount formats a value, a dash for none.
func amount(v float64, unit string) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3g %s", v, unit)
}

// missed names the results that must be met and are not.
func missed(all []result) []string {
	var names []string
	for _, r := range all {
		if r.verdict() == "MISS" {
			names = append(names, r.Program+" ("+r.What+")")
		}
	}
	return names
}

func printTable(out io.Writer, all []result) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROGRAM\tWHAT\tVALUE\tMUST\tAIM\tVERDICT\tKILN p50 (p90)\tPEER p50 (p90)\tLOAD\tFSYNC ms")
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f-%.1f\t%.2f\n", r.Program, r.What,
			amount(r.Value, r.Unit), amount(r.Must, r.Unit), amount(r.Aim, r.Unit), r.verdict(), r.Kiln, r.Peer,
			r.Before.Load, r.After.Load, (r.Before.Fsync+r.After.Fsync)/2)
	}
	_ = w.Flush()
	for _, r := range all {
		if r.Note != "" {
			fmt.Fprintf(out, "%s, %s: %s\n", r.Program, r.What, r.Note)
		}
	}
}

func writeJSON(name string, all []result) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if name == "-" {
		_, err = os.Stdout.Write(b)
		return err
	}
	return os.WriteFile(name, b, 0o644)
}
