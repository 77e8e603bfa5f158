// A ZeroMQ socket in Java, which does what it is told on its standard input.
//
// A line in is a command and its words, a line out the answer to one. Frames are in hexadecimal,
// an empty one is "-". Nothing here knows of trioreq: this is what anybody would write.

import java.io.BufferedReader;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.zeromq.ZMQ;

public class Client {
    private static final String POM = "/META-INF/maven/org.zeromq/jeromq/pom.properties";
    private static final int HANDSHAKE_MILLISECONDS = 2000;

    private final ZMQ.Context context = ZMQ.context(1);
    private ZMQ.Socket socket;

    public static void main(String[] arguments) throws Exception {
        Client client = new Client();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            System.out.println(String.join("|", client.obey(line.split(" "))));
            System.out.flush();
        }
        System.exit(0);
    }

    private List<String> obey(String[] words) throws Exception {
        List<String> answer = new ArrayList<>();
        switch (words[0]) {
            case "version":
                answer.add("Java " + System.getProperty("java.version"));
                answer.add("jeromq " + jeromqVersion());
                answer.add("as libzmq " + ZMQ.getVersionString());
                break;
            case "connect":
                open(words[1]);
                socket.connect(words[2]);
                break;
            case "bind":
                open(words[1]);
                String host = words[2].substring(0, words[2].lastIndexOf(':'));
                answer.add(host + ":" + socket.bindToRandomPort(host));
                break;
            case "send":
                for (int i = 1; i < words.length; i++) {
                    socket.send(decode(words[i]), i < words.length - 1 ? ZMQ.SNDMORE : 0);
                }
                break;
            case "receive":
                do {
                    answer.add(encode(socket.recv(0)));
                } while (socket.hasReceiveMore());
                break;
            default:
                throw new IllegalArgumentException(words[0]);
        }
        return answer;
    }

    private void open(String name) throws Exception {
        socket = context.socket(kind(name));
        // JeroMQ 0.6 stays in a handshake now and then, whoever its peer is, and by itself tries
        // again after half a minute. JeroMQ 0.3 has no such time.
        for (Method method : ZMQ.Socket.class.getMethods()) {
            if (method.getName().equals("setHandshakeIvl")) {
                method.invoke(socket, HANDSHAKE_MILLISECONDS);
            }
        }
    }

    private static int kind(String name) {
        switch (name) {
            case "REQ":
                return ZMQ.REQ;
            case "DEALER":
                return ZMQ.DEALER;
            case "REP":
                return ZMQ.REP;
            case "ROUTER":
                return ZMQ.ROUTER;
            default:
                throw new IllegalArgumentException(name);
        }
    }

    private static String jeromqVersion() throws Exception {
        Properties properties = new Properties();
        try (InputStream file = ZMQ.class.getResourceAsStream(POM)) {
            if (file != null) {
                properties.load(file);
            }
        }
        return properties.getProperty("version", "of unknown version");
    }

    private static byte[] decode(String word) {
        byte[] frame = new byte[word.length() / 2]; // "-" is the empty one
        for (int i = 0; i < frame.length; i++) {
            frame[i] = (byte) Integer.parseInt(word.substring(2 * i, 2 * i + 2), 16);
        }
        return frame;
    }

    private static String encode(byte[] frame) {
        StringBuilder word = new StringBuilder();
        for (byte octet : frame) {
            word.append(String.format("%02x", octet));
        }
        return word.length() == 0 ? "-" : word.toString();
    }
}
