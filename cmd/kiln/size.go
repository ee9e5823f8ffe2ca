package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A sizeFlag is a number of bytes, written with a unit: 500MB, 20GiB.
type sizeFlag int64

// units of sizes; those of one letter are of 1024, as docker has them.
var sizeUnits = map[string]float64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// Set reads a size.
func (s *sizeFlag) Set(text string) error {
	number := strings.TrimRight(strings.TrimSpace(text), "bBkKmMgGtTiI ")
	unit, known := sizeUnits[strings.ToLower(strings.TrimSpace(strings.TrimSpace(text)[len(number):]))]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || !(n >= 0 && n*unit < math.MaxInt64) {
		return fmt.Errorf("want a size such as 500MB or 20GiB")
	}
	*s = sizeFlag(n * unit)
	return nil
}

// Type is what the flag's help shows.
func (s *sizeFlag) Type() string { return "SIZE" }

// String is empty for zero, which is the default.
func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return sizeText(int64(*s))
}

// sizeText is a size as people read it: 1.5GB.
func sizeText(bytes int64) string {
	n, unit := float64(bytes), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if n < 999.5 {
			break
		}
		n, unit = n/1000, u
	}
	if unit == "B" || n >= 99.5 {
		return fmt.Sprintf("%.0f%s", n, unit)
	}
	return fmt.Sprintf("%.1f%s", n, unit)
}
