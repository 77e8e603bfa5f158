// Sends one request to a server: java -cp jeromq.jar:jnacl.jar:. Ask ENDPOINT BODY MILLISECONDS
//
// javac -cp jeromq.jar Ask.java

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.zeromq.ZMQ;
import org.zeromq.ZMQException;

public class Ask {
    private static final String MARK = "trioreq-error"; // the first frame of an error reply

    // Prints each frame of the reply on a line. Returns 0 for a reply, 1 for an error, 3 for a timeout.
    private static int receive(ZMQ.Socket socket) {
        List<String> frames = new ArrayList<>();
        do {
            byte[] frame = socket.recv(0);
            if (frame == null) {
                System.err.println("no reply in time");
                return 3;
            }
            frames.add(new String(frame, StandardCharsets.UTF_8));
        } while (socket.hasReceiveMore());
        boolean failed = frames.size() == 3 && frames.get(0).equals(MARK);
        PrintStream output = failed ? System.err : System.out;
        for (String frame : frames.subList(failed ? 1 : 0, frames.size())) { // of an error: code, text
            output.println(frame);
        }
        return failed ? 1 : 0;
    }

    public static void main(String[] words) {
        if (words.length != 3) {
            System.err.println("usage: Ask ENDPOINT BODY MILLISECONDS");
            System.exit(2);
        }
        ZMQ.Context context = ZMQ.context(1);
        ZMQ.Socket socket = context.socket(ZMQ.REQ);
        socket.setLinger(0);
        socket.setReceiveTimeOut(Integer.parseInt(words[2]));
        socket.setHandshakeIvl(500); // JeroMQ 0.6 sometimes needs a second attempt
        int code = 2;
        try {
            socket.connect(words[0]);
            socket.send(words[1].getBytes(StandardCharsets.UTF_8), 0);
            code = receive(socket);
        } catch (ZMQException | IllegalArgumentException error) {
            System.err.println(words[0] + ": " + error.getMessage());
        }
        socket.close(); // after a timeout this cancels the work at the server
        context.term();
        System.exit(code);
    }
}
