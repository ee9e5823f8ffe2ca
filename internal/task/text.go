package task

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Duration is written as 90s, 10m or 1h30m, or as a whole number of seconds.
type Duration time.Duration

// String returns the duration without parts that are zero: 1h30m.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText returns String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n > math.MaxInt32 || n < math.MinInt32 {
			return fmt.Errorf("%s seconds are out of range", s)
		}
		*d = Duration(time.Duration(n) * time.Second)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration; write 90s, 10m or 1h30m", clip(s))
	}
	*d = Duration(v)
	return nil
}

// UnmarshalJSON reads a duration, or a number of seconds.
func (d *Duration) UnmarshalJSON(data []byte) error { return unmarshalScalar(data, d.UnmarshalText) }

// Bytes is an amount of memory, written as 512Mi, 4Gi, 2G or as a number of bytes.
type Bytes int64

var units = []struct {
	suffix string
	size   int64
}{{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}}

// String returns the amount in the greatest unit in which it is whole.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText returns String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads an amount.
func (b *Bytes) UnmarshalText(text []byte) error {
	s, size := string(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, size = rest, u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/size {
		return fmt.Errorf("%q is no amount of memory; write 512Mi or 4Gi", clip(string(text)))
	}
	*b = Bytes(n * size)
	return nil
}

// UnmarshalJSON reads an amount, or a number of bytes.
func (b *Bytes) UnmarshalJSON(data []byte) error { return unmarshalScalar(data, b.UnmarshalText) }

// unmarshalScalar hands a JSON string or number to a reader of text.
func unmarshalScalar(data []byte, read func([]byte) error) error {
	if len(data) > 0 && data[0] == '"' {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		return read([]byte(s))
	}
	return read(data)
}

// clip shortens a text for a message.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
