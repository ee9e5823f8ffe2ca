package api

import (
	"net/http"
	"time"

	"kiln/internal/apiclient"
)

// backupStall is how long who receives a backup may take for a piece of it.
const backupStall = time.Minute

func (s *Server) backup(w http.ResponseWriter, r *http.Request) error {
	var b apiclient.Backup
	if err := decodeBody(r, &b); err != nil {
		return err
	}
	out := &backupBody{w: w, control: http.NewResponseController(w)}
	err := s.Backup(r.Context(), out, b)
	if err != nil && out.begun { // and so says the backup
		s.Log.Error("backup given up", "err", err)
		return nil
	}
	return err
}

// A backupBody is the answer that a backup is written to, piece by piece.
type backupBody struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (b *backupBody) Write(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.w.Header().Set("Content-Type", "application/octet-stream")
		b.w.Header().Set("Cache-Control", "no-store")
	}
	_ = b.control.SetWriteDeadline(time.Now().Add(backupStall)) // not every connection has deadlines
	return b.w.Write(p)
}
