package daemon

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// routeLogs sends what BuildKit and containerd log to l. Their errors are mostly failed builds, which
// are results and not errors here, and their warnings things that nobody can do anything about; so
// they arrive as warnings and at debug level.
func routeLogs(l *slog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.SetFormatter(discardFormat{})
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	level := logrus.ErrorLevel
	if l.Enabled(context.Background(), slog.LevelDebug) {
		level = logrus.InfoLevel
	}
	logrus.SetLevel(level)
	logrus.AddHook(slogHook{l})
}

// discardFormat spares logrus the formatting of entries that the hook has already taken.
type discardFormat struct{}

func (discardFormat) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// slogHook passes logrus entries to a slog.Logger.
type slogHook struct{ log *slog.Logger }

func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	level := slogLevel(e.Level)
	if !h.log.Enabled(ctx, level) {
		return nil
	}
	attrs := make([]slog.Attr, 0, 1+len(e.Data))
	attrs = append(attrs, slog.String("text", e.Message))
	for k, v := range e.Data {
		if err, ok := v.(error); ok {
			v = err.Error() // some print a stack trace otherwise
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	h.log.LogAttrs(ctx, level, "buildkit", attrs...)
	return nil
}

func slogLevel(l logrus.Level) slog.Level {
	switch l {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}
